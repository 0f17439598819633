"""The application that commands register with."""

from cyclopts import App, Group

EXIT_OK, EXIT_MISTAKE, EXIT_DIVERGED, EXIT_INTERRUPTED = 0, 2, 3, 130

app = App(
    name="rankwise",
    help="Find the smallest LoRA that does the job: many ranks trained together over one frozen base.",
    help_flags=["--help", "-h"],
    version_flags=["--version"],
    # Ctrl-C has an exit code and a message of ours.
    suppress_keyboard_interrupt=False,
)

HOW = Group("How it runs", sort_key=10)
