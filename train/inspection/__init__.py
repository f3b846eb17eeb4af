"""What `lockstep data` shows that needs the tokenizer or the stream: lengths of captions, and samples as training sees
them."""
