"""What can go wrong with a delivery; what clients may do wrong is in service/errors.py.

UndeliveredError       no answer; the message is for the owner of the endpoint, and names no address
"""


class UndeliveredError(Exception): ...
