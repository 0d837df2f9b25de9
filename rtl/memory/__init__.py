"""Memories: RAM, ROM in all its forms, and copies of registers."""

ROM_FORMS = ("image", "logic")  # of a ROM in the generated Verilog: a memory that reads a file, or gates
