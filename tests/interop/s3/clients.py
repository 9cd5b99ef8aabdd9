"""What an unmodified program does with S3: it reads, writes, or goes on until it is cut. It knows nothing of Leasehold."""

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

DATA, OUT = 'dev/data', None
MIB = 1 << 20


def make(folder):
    """Four Parquet files of 55 MiB each that no compression makes smaller, and one file without an end in sight."""
    import numpy
    import pyarrow
    import pyarrow.parquet
    random = numpy.random.default_rng(7)
    for part in range(4):
        rows = 55 * MIB // 16
        columns = {'x': random.random(rows), 'y': random.random(rows)}
        pyarrow.parquet.write_table(pyarrow.table(columns), f'{folder}/part-{part}.parquet', use_dictionary=False)
    os.truncate(os.open(f'{folder}/endless.bin', os.O_CREAT | os.O_WRONLY), 256 << 30)


def sha(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


def parts(folder):
    return {name: sha(f'{folder}/{name}') for name in sorted(os.listdir(folder)) if name.endswith('.parquet')}


def run(*command, **more):
    return subprocess.run(command, check=True, **more)


# ---------- reading: the whole dataset, compared with what is on the disk ----------

class Boto3:
    def __init__(self):
        import boto3
        self.s3 = boto3.client('s3')

    def read(self, wanted):
        listed = self.s3.list_objects_v2(Bucket='dev', Prefix='data/part-')
        assert [o['Key'] for o in listed['Contents']] == [f'data/{name}' for name in wanted], listed
        with tempfile.TemporaryDirectory() as here:
            for name in wanted:
                self.s3.download_file('dev', f'data/{name}', f'{here}/{name}')
            assert parts(here) == wanted
        head = self.s3.get_object(Bucket='dev', Key='data/part-0.parquet', Range='bytes=0-3')['Body'].read()
        assert head == b'PAR1', head
        url = self.s3.generate_presigned_url('get_object', Params={'Bucket': 'dev', 'Key': 'data/part-0.parquet'})
        roots = ssl.create_default_context(cafile=os.environ.get('AWS_CA_BUNDLE'))
        with urllib.request.urlopen(url, context=roots) as answer:
            assert answer.read(4) == b'PAR1', url

    def write(self, file, to):
        bucket, key = to.split('/', 1)
        self.s3.upload_file(file, bucket, key)
        back = self.s3.get_object(Bucket=bucket, Key=key)['Body']
        digest = hashlib.sha256()
        for piece in back.iter_chunks(MIB):
            digest.update(piece)
        assert digest.hexdigest() == sha(file)

    def endless(self, begun):
        for piece in self.s3.get_object(Bucket='dev', Key='data/endless.bin')['Body'].iter_chunks(MIB):
            begun()

    def endless_upload(self, begun, to):
        bucket, key = to.split('/', 1)
        upload = self.s3.create_multipart_upload(Bucket=bucket, Key=key)['UploadId']
        for part in range(1, 10_001):
            self.s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=part, Body=bytes(16 * MIB))
            begun()


class Aws:
    def read(self, wanted):
        with tempfile.TemporaryDirectory() as here:
            run('aws', 's3', 'sync', f's3://{DATA}/', here, '--exclude', '*', '--include', 'part-*', '--no-progress', stdout=subprocess.DEVNULL)
            assert parts(here) == wanted

    def write(self, file, to):
        run('aws', 's3', 'cp', file, f's3://{to}', '--no-progress', stdout=subprocess.DEVNULL)
        back = run('aws', 's3', 'cp', f's3://{to}', '-', stdout=subprocess.PIPE).stdout
        assert hashlib.sha256(back).hexdigest() == sha(file)

    def endless(self, begun):
        begun()
        run('aws', 's3', 'cp', f's3://{DATA}/endless.bin', '-', stdout=subprocess.DEVNULL)


class Rclone:
    def read(self, wanted):
        listed = run('rclone', 'lsf', f':s3:{DATA}', stdout=subprocess.PIPE, text=True).stdout.split()
        assert set(wanted) <= set(listed), listed
        with tempfile.TemporaryDirectory() as here:
            run('rclone', 'copy', f'leasehold:{DATA}', here, '--include', 'part-*')
            assert parts(here) == wanted

    def write(self, file, to):
        run('rclone', 'copyto', file, f'leasehold:{to}', '--s3-upload-cutoff', '16M')
        back = run('rclone', 'cat', f'leasehold:{to}', stdout=subprocess.PIPE).stdout
        assert hashlib.sha256(back).hexdigest() == sha(file)

    def endless(self, begun):
        begun()
        run('rclone', 'cat', f'leasehold:{DATA}/endless.bin', '--retries', '1', '--low-level-retries', '1', stdout=subprocess.DEVNULL)


class Pyarrow:
    def read(self, wanted):
        import pyarrow.dataset
        import pyarrow.parquet
        rows = sum(pyarrow.parquet.read_table(f's3://{DATA}/{name}').num_rows for name in wanted)
        from pyarrow.fs import FileSystem
        system, path = FileSystem.from_uri(f's3://{DATA}')
        found = pyarrow.dataset.dataset([f'{path}/{name}' for name in wanted], filesystem=system, format='parquet')
        assert found.count_rows() == rows == 4 * (55 * MIB // 16), rows

    def write(self, file, to):
        from pyarrow.fs import FileSystem
        system, path = FileSystem.from_uri(f's3://{to}')
        with system.open_output_stream(path) as out, open(file, 'rb') as data:
            while piece := data.read(8 * MIB):
                out.write(piece)
        digest = hashlib.sha256()
        with system.open_input_stream(path) as back:
            while piece := back.read(MIB):
                digest.update(piece)
        assert digest.hexdigest() == sha(file)

    def endless(self, begun):
        from pyarrow.fs import FileSystem
        system, path = FileSystem.from_uri(f's3://{DATA}/endless.bin')
        with system.open_input_stream(path) as data:
            while data.read(MIB):
                begun()


class Delta:
    """A table with a commit for each Parquet file, which only delta-rs reads."""

    def write(self, file, to):
        import pyarrow.parquet
        from deltalake import DeltaTable, write_deltalake
        folder = os.path.dirname(file)
        for name in sorted(n for n in os.listdir(folder) if n.startswith('part-')):
            write_deltalake(f's3://{to}', pyarrow.parquet.read_table(f'{folder}/{name}'), mode='append')
        table = DeltaTable(f's3://{to}')
        written = len(parts(folder))
        assert table.version() == written - 1, table.version()
        assert table.to_pyarrow_table().num_rows == written * (55 * MIB // 16)

    def endless(self, begun, to):
        from deltalake import DeltaTable, write_deltalake
        import pyarrow
        write_deltalake(f's3://{to}', pyarrow.table({'x': list(range(200_000))}))
        while True:
            DeltaTable(f's3://{to}').to_pyarrow_table()
            begun()


class S3fs:
    def __init__(self):
        import s3fs
        self.fs = s3fs.S3FileSystem()

    def read(self, wanted):
        with tempfile.TemporaryDirectory() as here:
            for name in wanted:
                self.fs.get(f'{DATA}/{name}', f'{here}/{name}')
            assert parts(here) == wanted
        assert {os.path.basename(path) for path in self.fs.find(DATA)} >= set(wanted)

    def write(self, file, to):
        self.fs.put(file, to)
        with self.fs.open(to, 'rb') as back:
            assert hashlib.sha256(back.read()).hexdigest() == sha(file)

    def endless(self, begun):
        with self.fs.open(f'{DATA}/endless.bin', 'rb', block_size=16 * MIB, cache_type='readahead') as data:
            while data.read(MIB):
                begun()


class Datasets:
    def read(self, wanted):
        import datasets
        files = [f's3://{DATA}/{name}' for name in wanted]
        with tempfile.TemporaryDirectory() as here:
            whole = datasets.load_dataset('parquet', data_files=files, split='train', cache_dir=here)
            assert whole.num_rows == 4 * (55 * MIB // 16), whole
        stream = datasets.load_dataset('parquet', data_files=files, split='train', streaming=True)
        assert len(next(iter(stream.iter(batch_size=1000)))['x']) == 1000

    def write(self, file, to):
        import datasets
        folder = os.path.dirname(file)
        files = sorted(f'{folder}/{name}' for name in os.listdir(folder) if name.startswith('part-'))
        with tempfile.TemporaryDirectory() as here:
            whole = datasets.load_dataset('parquet', data_files=files, split='train', cache_dir=here)
            whole.save_to_disk(f's3://{to}')
            again = datasets.load_from_disk(f's3://{to}')
        assert again.num_rows == whole.num_rows

    def endless(self, begun):
        import datasets
        datasets.config.STREAMING_READ_MAX_RETRIES = 1
        files = [f's3://{DATA}/part-{part}.parquet' for part in range(4)]
        while True:
            stream = datasets.load_dataset('parquet', data_files=files, split='train', streaming=True)
            for _ in stream.iter(batch_size=100_000):
                begun()


class Hub:
    """The clients of the Hugging Face Hub, which only read."""

    def read(self, wanted):
        import datasets
        from huggingface_hub import HfFileSystem, hf_hub_download, snapshot_download
        for name in wanted:
            assert sha(hf_hub_download('dev/shards', name, repo_type='dataset')) == wanted[name]
        assert os.path.exists(f'{snapshot_download("dev/tiny")}/config.json')
        with HfFileSystem().open('datasets/dev/shards/part-1.parquet', 'rb') as file:
            assert file.read(4) == b'PAR1'
        stream = datasets.load_dataset('dev/shards', data_files='part-*.parquet', split='train', streaming=True)
        assert len(next(iter(stream.iter(batch_size=1000)))['x']) == 1000

    def endless(self, begun):
        from huggingface_hub import HfFileSystem
        with HfFileSystem().open('datasets/dev/shards/endless.bin', 'rb', block_size=16 * MIB) as data:
            while data.read(MIB):
                begun()


CLIENTS = {'boto3': Boto3, 'aws': Aws, 'rclone': Rclone, 'pyarrow': Pyarrow, 'delta-rs': Delta, 's3fs': S3fs, 'datasets': Datasets, 'hub': Hub}


def cut(name, way, result, to):
    """Goes on until something ends it, and writes what and when."""
    # A killed wrapper's guard asks this process to end. It goes on for a moment, to see what a client sees.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def begun():
        if not os.path.exists(f'{result}.begun'):
            with open(f'{result}.draft', 'w') as out:
                out.write(f'{os.getpid()} {os.environ["LEASEHOLD_JOB"]}\n')
            os.rename(f'{result}.draft', f'{result}.begun')
    try:
        client = CLIENTS[name]()
        if way == 'up':
            client.endless_upload(begun, to)
        elif name == 'delta-rs':
            client.endless(begun, to)
        else:
            client.endless(begun)
        error = 'none: it ended as if it were whole'
    except BaseException as caught:
        error = f'{type(caught).__name__}: {caught}'
    with open(f'{result}.draft', 'w') as out:
        json.dump({'at': time.time_ns(), 'error': error[:400]}, out)
    os.rename(f'{result}.draft', result)


def main():
    what, *rest = sys.argv[1:]
    if what == 'make':
        make(rest[0])
    elif what == 'read':
        CLIENTS[rest[0]]().read(parts(rest[1]))
    elif what == 'write':
        to = f'dev/out/{os.environ["LEASEHOLD_JOB"]}/{rest[0]}'
        CLIENTS[rest[0]]().write(rest[1], to)
    elif what == 'cut':
        cut(rest[0], rest[1], rest[2], f'dev/out/{os.environ["LEASEHOLD_JOB"]}/{rest[0]}-cut')


main()
# The threads of pyarrow and delta-rs sometimes abort an interpreter that shuts down. All was done before.
sys.stdout.flush()
os._exit(0)
