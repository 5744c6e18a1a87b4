"""Architecture search: which operator in which layer costs least for the accuracy that the network reaches."""
