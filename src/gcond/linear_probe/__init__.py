"""What the frozen encoder of a finished run knows (question O7): a linear probe; nothing is trained again."""
