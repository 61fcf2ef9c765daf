"""What each verb of the command line does: its options go in, text on the terminal and files of a run come out."""
