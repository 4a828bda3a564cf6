"""One file per kind of thing that clients can address."""
