"""Text corpora with questions and answers, made on the machine of whoever uses them."""
