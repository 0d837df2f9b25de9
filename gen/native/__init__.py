"""Parts of the generator in C++, for speed alone: everything works, and gives the same bytes, without a C++ compiler."""
