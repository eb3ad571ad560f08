"""The embedded server's own backend: C++ inside tritonserver, and the Python it calls."""
