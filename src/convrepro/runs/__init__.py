"""What a run is: its identity, plan, folder, result and environment. Imports no torch."""
