"""Client and command line of Chorale."""
