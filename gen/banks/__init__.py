"""Banks of read-only memory of a whole model, beside the units that use them, written in bounded memory."""
