"""What a finished run says: which policy came from which, figures, pages and cards."""
