"""Vector unit: norm and quantise, rotary, and the way in and out of the residual and the result buffer."""
