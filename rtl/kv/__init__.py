"""Keys and values between memory and the units: fetching, and the cache of blocks in two tiers."""
