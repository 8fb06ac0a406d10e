"""The doors: each a protocol, whose messages become calls and requests, and answers messages."""
