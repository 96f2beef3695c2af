"""A Slurm of two nodes on this machine, for as long as tests want it."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NODES = ('n1', 'n2')
_PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scancel', 'scontrol')
_HOSTS = pathlib.Path('/etc/hosts')
_CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=20
ReturnToService=2
NodeName=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
  """A running one.

  Attributes:
    folder: what its daemons keep.
  """

  def __init__(self, folder):
    self.folder = folder
    self._environment = {
      **os.environ,
      'SLURM_CONF': str(folder / 'slurm.conf'),
      'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    }

  def run(self, *command, **environment):
    """Runs one of Slurm's commands, and returns what it says."""
    done = subprocess.run(
      list(map(str, command)),
      cwd=ROOT,
      env=self._environment | environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.strip()

  def submit(self, *command, log, **environment):
    """The number of a new job."""
    return self.run(
      *('sbatch', '--parsable', f'--output={log}', *command), **environment
    )

  def jobs(self, job):
    """What Slurm knows of a job, of each task of an array."""
    text = self.run('scontrol', '--oneliner', 'show', 'job', job)
    return [
      dict(re.findall(r'(\w+)=(\S*)', line)) for line in text.splitlines()
    ]

  def wait(self, job, log, *states, seconds=900):
    """Waits until all tasks of a job are in one of the states."""
    deadline = time.monotonic() + seconds
    while True:
      found = self.jobs(job)
      if all(each['JobState'] in states for each in found):
        return found
      assert time.monotonic() < deadline, (found, read(log))
      time.sleep(0.1)


def read(log):
  """What the logs of a job have; there may be none yet."""
  logs = sorted(log.parent.glob(log.name.replace('%a', '*')))
  return '\n'.join(each.read_text() for each in logs)


@contextlib.contextmanager
def running():
  """A Slurm while the block runs; skips the tests where there can be none."""
  missing = [name for name in _PROGRAMS if not shutil.which(name)]
  if missing:
    pytest.skip(f'no {missing[0]}: apt-get install slurm-wlm munge')
  if os.getuid() != 0:
    pytest.skip('Slurm is started by root only')
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(_known_hosts())
    except OSError as error:
      pytest.skip(f'{_HOSTS} cannot be written ({error.strerror})')
    # In a short folder, for a socket has no long name.
    folder = pathlib.Path(tempfile.mkdtemp(prefix='slurm'))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    slurm = Slurm(folder)
    stack.callback(_stop, folder)
    _start(slurm, folder)
    # What a failed test left would go on.
    stack.callback(_empty, slurm)
    yield slurm


@contextlib.contextmanager
def _known_hosts():
  """Both nodes are this machine, as long as the block runs."""
  before = _HOSTS.read_text()
  new = [name for name in NODES if name not in before.split()]
  lines = ''.join(f'127.0.0.1 {name}\n' for name in new)
  if new:
    _HOSTS.write_text(before.rstrip('\n') + '\n' + lines)
  try:
    yield
  finally:
    if new:
      _HOSTS.write_text(_HOSTS.read_text().replace(lines, ''))


def _start(slurm, folder):
  folder.chmod(0o755)
  (folder / 'state').mkdir()
  (folder / 'key').write_bytes(os.urandom(128))
  (folder / 'key').chmod(0o400)
  with contextlib.ExitStack() as stack:
    free = [stack.enter_context(socket.socket()) for _ in range(3)]
    for each in free:
      each.bind(('127.0.0.1', 0))
    ports = [each.getsockname()[1] for each in free]
  host = socket.gethostname()
  (folder / 'slurm.conf').write_text(
    _CONFIG.format(host=host, folder=folder, ports=ports)
  )
  slurm.run(
    *('munged', '--force', f'--key-file={folder}/key'),
    *(f'--socket={folder}/munge', f'--pid-file={folder}/munged.pid'),
    *(f'--log-file={folder}/munged.log', f'--seed-file={folder}/seed'),
  )
  slurm.run('slurmctld')
  for node in NODES:
    slurm.run('slurmd', '-N', node)
  deadline = time.monotonic() + 30
  while 'idle' not in slurm.run('sinfo', '--noheader', '--format=%D %T'):
    if time.monotonic() > deadline:
      pytest.skip(
        'Slurm does not start: ' + (folder / 'slurmctld.log').read_text()[-500:]
      )
    time.sleep(0.2)
  slurm.run('srun', '-N2', '-n2', 'true')


def _empty(slurm):
  """Ends all jobs, and waits until nothing of them is left."""
  slurm.run('scancel', '--user=root', '--full', '--signal=KILL')
  slurm.run('scancel', '--user=root')
  deadline = time.monotonic() + 60
  while slurm.run('squeue', '--noheader') and time.monotonic() < deadline:
    time.sleep(0.2)


def _stop(folder):
  for path in folder.glob('*.pid'):
    with contextlib.suppress(OSError, ValueError):
      pid = int(path.read_text())
      os.kill(pid, signal.SIGTERM)
      deadline = time.monotonic() + 10
      while time.monotonic() < deadline:
        os.kill(pid, 0)
        time.sleep(0.05)
      os.kill(pid, signal.SIGKILL)
