"""The HTTP side: takes requests, keeps the records, tells the story of each job. Never loads a model."""
