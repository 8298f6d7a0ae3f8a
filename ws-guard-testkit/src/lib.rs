//! Namespaces, foreign servers and clients: what the tests and the demonstration are made of.
