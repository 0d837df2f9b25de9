"""The decoder in torch: float model, exact model, and the exact model behind the device's protocol."""
