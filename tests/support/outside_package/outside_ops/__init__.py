"""GhostNet's and FasterNet's convolutions as operators of convrepro, and a small network."""
