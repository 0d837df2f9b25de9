"""Generation of the prefill attention unit, its cycles and what it would do at other sizes."""
