"""What a run is, one update of it, and what is measured of it."""
