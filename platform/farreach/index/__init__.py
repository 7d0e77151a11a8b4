"""Search: embedded documents on disk, and indexes over them."""
