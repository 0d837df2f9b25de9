"""Who does what when: layer program and sequencer of the decoder, schedule and jobs of sparse attention."""
