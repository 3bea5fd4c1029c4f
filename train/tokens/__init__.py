"""From messages to rows of tokens: chat templates, lengths, packing, the order of rows."""
