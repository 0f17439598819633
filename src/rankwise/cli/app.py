"""The application that commands register with."""

from cyclopts import App

from rankwise.tasks.flags import flag_group

EXIT_OK, EXIT_MISTAKE, EXIT_DIVERGED, EXIT_INTERRUPTED = 0, 2, 3, 130
EXIT_ANSWERED, EXIT_LATER, EXIT_PIPE = 10, 75, 141
"""Of `rankwise work`: the answer is written; another process is at work there, so try again later."""

app = App(
    name="rankwise",
    help=(
        "Find the smallest LoRA that does the job: many ranks trained together over one frozen base.\n\n"
        "Start with a demonstration of half a minute: rankwise digits\n\n"
        "With your own data: rankwise sweep --model FOLDER_OR_HUB_NAME --task classify --data train.csv\n\n"
        "Every command explains itself: rankwise sweep --help"
    ),
    help_flags=["--help", "-h"],
    version_flags=["--version"],
    # We choose the exit code and the message of Ctrl-C.
    suppress_keyboard_interrupt=False,
    # After the main options, and before what a command shares with others.
    group_parameters=flag_group("Options", 1),
)

app.register_install_completion_command(name="--install-completion")
