"""The ternary linear unit: weights in read-only memory beside the lanes."""
