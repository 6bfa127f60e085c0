"""What tests need of the outside world: real servers, a faulty wire between them, and independent clients.

With that, what several files of tests share.
"""
