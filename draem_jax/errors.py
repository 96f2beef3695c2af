"""The one exception that the commands turn into one line and exit status 2."""


class UserError(Exception):
  """Something that the user can mend.

  The message is one line that names the file or the field, says what is wrong
  with it and what to do about it. The commands print it without a traceback.
  """
