"""The host's side of sparse prefill attention: real tensors to integers and memory, runs, results. Needs numpy alone."""
