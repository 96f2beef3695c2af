"""The exceptions that the commands turn into one line and an exit status."""


class UserError(Exception):
  """Something that the user can mend.

  The message is one line that names the file or the field, says what is wrong
  with it and what to do about it. The commands print it without a traceback.

  Attributes:
    status: the exit status of a command that it ends.
  """

  status = 2


class PassingError(UserError):
  """Something that may pass by itself: the same command may just go on later.

  Its status is `EX_TEMPFAIL`, on which clusters start a command again.
  """

  status = 75
