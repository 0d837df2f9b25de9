"""Memories: RAM, ROM in all its forms, and copies of registers."""
