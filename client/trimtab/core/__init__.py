"""What the SDK decides, without IO: requests, answers, streams, for the sync and the async client alike."""
