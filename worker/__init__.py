"""Takes jobs from the queue and makes their pictures, in two processes: a consumer and its engine process."""
