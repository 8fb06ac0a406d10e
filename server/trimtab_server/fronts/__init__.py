"""The front ends, a folder for each protocol: messages become requests, and answers messages."""
