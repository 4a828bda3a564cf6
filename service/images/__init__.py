"""Pictures: those sent with requests, and the deep zoom of the results."""
