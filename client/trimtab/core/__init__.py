"""The SDK's logic, without IO: requests, answers and streams. The sync and async clients share it."""
