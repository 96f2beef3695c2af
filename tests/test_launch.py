"""The scripts in `launch/`: what they start, and how they are called."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from PIL import Image
from small import random_images

from draem_jax import errors

ROOT = pathlib.Path(__file__).parents[1]
# What a command's flags make of a line, without running it.
PARSE = """
import sys
from draem_jax import command, config, main
sys.argv = sys.argv[1:]
main.define_flags()
command.refuse_arguments(command.parse_flags(sys.argv))
read = command.read_config().to_dict()
config.check(read)
print(read['category'], read['data']['dir'])
"""


def script(name, *arguments, **variables):
  return subprocess.run(
    [ROOT / 'launch' / name, *map(str, arguments)],
    env=os.environ
    | {'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'}
    | variables,
    capture_output=True,
    text=True,
    check=False,
  )


def parse(command):
  """What the project reads from a command `python -m draem_jax.main ...`."""
  assert command[0].endswith('python')
  assert command[1:3] == ['-m', 'draem_jax.main']
  done = subprocess.run(
    [sys.executable, '-c', PARSE, 'draem-train', *command[3:]],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


@pytest.mark.parametrize('name', ['local.sh', 'slurm.sh', 'tpu_pod.sh'])
def test_a_script_without_arguments_tells_how_it_is_called(name):
  done = script(name)
  assert done.returncode == 2 and not done.stdout
  assert f'launch/{name} ' in done.stderr
  # The whole comment, and nothing behind it.
  text = (ROOT / 'launch' / name).read_text()
  comment = re.match(r'#!.*\n# .*\n#\n((?:#(?: .*)?\n)+)', text)[1]
  assert done.stderr == re.sub('^# ?', '', comment, flags=re.MULTILINE)


def test_the_commands_for_a_tpu_pod():
  done = script(
    *('tpu_pod.sh', '--dry_run', 'pod', '/data', 'bottle,release'),
    *('--config.batch_size=32', '--config.simulator.threshold=(0.4, 0.6)'),
    ZONE='here',
    TYPE='v5litepod-16',
    VERSION='software',
    WORKDIR='/shared/run',
    TMPDIR='/tmp',
  )
  assert done.returncode == 0 and not done.stderr
  lines = [shlex.split(line) for line in done.stdout.splitlines()]
  tpu_vm = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  create, archive, copy, install, train = lines
  assert create == [
    *(*tpu_vm, 'create', 'pod', '--zone=here'),
    *('--accelerator-type=v5litepod-16', '--version=software'),
  ]
  assert archive[:2] == ['git', 'archive'] and archive[-1] == 'HEAD'
  assert copy == [
    *(*tpu_vm, 'scp', '/tmp/draem.tar.gz', 'pod:draem.tar.gz'),
    *('--zone=here', '--worker=all'),
  ]
  for line in (install, train):
    assert line[:-1] == [*tpu_vm, 'ssh', 'pod', '--zone=here', '--worker=all']
  assert install[-1].startswith('--command=mkdir -p draem && tar -xzf')
  assert install[-1].endswith("--editable draem 'jax[tpu]'")
  remote = re.fullmatch(
    r"--command=cd draem && \(trap '' HUP; exec (.*) >run\.log 2>&1\) &"
    r' run=\$!; echo \$run >draem/run\.pid; worker=\$\(curl .*\);'
    r' if \[ "\$worker" = 0 \]; then tail --pid=\$run -n \+1 -F'
    r' draem/run\.log; fi; wait \$run',
    train[-1],
  )
  command = shlex.split(remote[1])
  assert command[3:] == [
    '--config=configs/mvtec.py:bottle,release',
    *('--workdir=/shared/run', '--config.data.dir=/data'),
    *('--config.batch_size=32', '--config.simulator.threshold=(0.4, 0.6)'),
  ]
  assert parse(command) == ['bottle', '/data']
  # The shell on the other side can read it.
  subprocess.run(['bash', '-n', '-c', train[-1][10:]], check=True)


def test_the_command_that_stops_a_tpu_pod():
  done = script('tpu_pod.sh', '--dry_run', '--stop', 'pod', ZONE='here')
  (line,) = map(shlex.split, done.stdout.splitlines())
  assert line[-3:] == [
    *('--zone=here', '--worker=all'),
    '--command=kill -TERM $(cat draem/run.pid)',
  ]


def test_the_job_set_runs_a_command_of_the_project():
  job_set = yaml.safe_load((ROOT / 'launch/jobset.yaml').read_text())
  spec = job_set['spec']
  (workers,) = spec['replicatedJobs']
  job = workers['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert parse(container['command']) == ['bottle', '/shared/mvtec_ad']

  # Every pod knows the first one, their number and its own.
  variables = {each['name']: each for each in container['env']}
  address, port = variables['JAX_COORDINATOR_ADDRESS']['value'].split(':')
  name, subdomain = job_set['metadata']['name'], spec['network']['subdomain']
  assert address == f'{name}-{workers["name"]}-0-0.{subdomain}'
  assert [{'containerPort': int(port)}] == container['ports']
  number = int(variables['JAX_NUM_PROCESSES']['value'])
  assert workers['replicas'] == 1 and job['completionMode'] == 'Indexed'
  assert job['parallelism'] == job['completions'] == number
  field = variables['JAX_PROCESS_ID']['valueFrom']['fieldRef']['fieldPath']
  assert 'job-completion-index' in field

  # All begin anew together, but not where a person has to mend something.
  assert pod['restartPolicy'] == 'Never' and job['backoffLimit'] == 0
  assert spec['failurePolicy']['maxRestarts'] > 0
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes'] == {
    'containerName': container['name'],
    'operator': 'In',
    'values': [errors.UserError.status],
  }
  assert errors.PassingError.status not in rule['onExitCodes']['values']
  assert spec['failurePolicy']['rules'][0]['action'] == 'FailJobSet'
  assert pod['terminationGracePeriodSeconds'] >= 60
  (volume,) = pod['volumes']
  (mount,) = container['volumeMounts']
  assert volume['name'] == mount['name']
  for argument in container['command']:
    if 'dir=' in argument:
      assert argument.partition('=')[2].startswith(mount['mountPath'] + '/')


def test_the_image_is_made_of_what_is_there():
  text = (ROOT / 'launch/Dockerfile').read_text()
  copied = re.findall(r'^COPY (.*) \S+$', text, re.MULTILINE)
  for name in ' '.join(copied).split():
    assert (ROOT / name).exists(), name
  # What setup.cfg reads while it is installed.
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    assert name in copied[0].split()


@pytest.mark.clusters
def test_categories_run_side_by_side_on_a_machine(tmp_path):
  for name in ('cups', 'pens', 'rags'):
    for split, count in (('train/good', 4), ('test/good', 1), ('test/bent', 1)):
      folder = tmp_path / 'data' / name / split
      folder.mkdir(parents=True)
      for index, image in enumerate(random_images(count, seed=count)):
        Image.fromarray(image).save(folder / f'{index}.png')
  broken = tmp_path / 'data/pens/train/good/3.png'
  broken.write_text('no picture')
  workdir = tmp_path / 'all'

  def run():
    return script(
      *('local.sh', tmp_path / 'data', 'all,release', '--processes=2'),
      f'--config.data.textures={tmp_path / "data/cups/train"}',
      f'--config.data.tfds_dir={tmp_path / "tfds"}',
      *('--config.image_size=32', '--config.batch_size=2'),
      *('--config.model.reconstructive_width=2', '--config.num_steps=2'),
      '--config.model.discriminative_width=2',
      WORKDIR=str(workdir),
      JAX_PLATFORMS='cpu',
      XLA_FLAGS='',
      JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'cache'),
    )

  if len(os.sched_getaffinity(0)) < 2:
    pytest.skip('a process takes a core at least')
  done = run()
  assert done.returncode == 1, done.stderr
  # Two at a time, each with a core of its own.
  begun = [line for line in done.stderr.splitlines() if ' begins: ' in line]
  assert len(begun) == 3 and '2 running' in done.stderr
  assert '| cups' in done.stdout and '| rags' in done.stdout
  assert 'pens failed: ' in done.stderr.splitlines()[-1]
  assert str(broken) in done.stderr.splitlines()[-1]
  table = (workdir / 'results.md').read_text()
  assert '| cups' in table and '\n- pens failed: ' in table

  # The same command tries again what failed, and nothing else.
  shape = json.loads((workdir / 'cups/results.json').read_text())
  Image.fromarray(random_images(1, seed=3)[0]).save(broken)
  before = (workdir / 'cups/report.html').stat().st_mtime_ns
  done = run()
  assert done.returncode == 0, done.stderr
  assert '| pens' in (workdir / 'results.md').read_text()
  assert 'Not in the table' not in (workdir / 'results.md').read_text()
  assert (workdir / 'cups/report.html').stat().st_mtime_ns == before
  assert shape['steps'] == 2


def test_flags_of_all_categories_are_refused_for_one():
  for flag in ('--only=2', '--processes=2'):
    done = script('local.sh', '/nowhere', 'pens', flag, JAX_PLATFORMS='cpu')
    assert done.returncode == 2
    name = flag.partition('=')[0]
    assert done.stderr.splitlines()[-1].startswith(f'error: {name} is for all')
