"""Takes jobs from the queue and sings them: main > consumer > engine_process > runner > … > engine."""
