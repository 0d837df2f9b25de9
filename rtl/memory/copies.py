"""Copies of a register, so that none of them drives too much and each can be placed near what it drives."""

__all__ = ["COPY"]

COPY = {
    "keep": 1
}  # attributes of a copy: without them synthesis makes one register of all (gen/synthesis/ecp5.py moves it to the cell)
