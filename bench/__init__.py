"""The main job and the benchmark: the only code besides the tests that uses every room."""
