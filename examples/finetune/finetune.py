"""Tunes a language model. A usual script: it reads a folder, streams a dataset, and saves checkpoints to a folder.

It saves and ends when it gets SIGTERM, and goes on from its last checkpoint when it is started again.
"""

import argparse
import json
import os
import signal

import datasets
import torch
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments,
)


def last_checkpoint(folder):
    """The last checkpoint that is complete: the state is what the trainer writes last."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    whole = [n for n in names if n.startswith('checkpoint-') and os.path.exists(f'{folder}/{n}/trainer_state.json')]
    return max((f'{folder}/{n}' for n in whole), key=lambda path: int(path.rsplit('-', 1)[1]), default=None)


class SaveOnSignal(TrainerCallback):
    """Saves and ends after the step in which SIGTERM came."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, self.ask)

    def ask(self, *_):
        self.asked = True

    def on_step_end(self, args, state, control, **_):
        if self.asked:
            control.should_save = control.should_training_stop = True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--base', required=True, help='a folder, or a name on the Hub')
    parser.add_argument('--data', required=True, help='JSON lines, such as s3://bucket/prefix/*.jsonl')
    parser.add_argument('--out', required=True, help='the folder of the checkpoints')
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--save-steps', type=int, default=50)
    options = parser.parse_args()

    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoModelForCausalLM.from_pretrained(options.base)
    rows = datasets.load_dataset('json', data_files=options.data, split='train', streaming=True)
    rows = rows.map(lambda row: tokenizer(row['text'], truncation=True, max_length=64), remove_columns=['text'])
    asked = SaveOnSignal()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.out, max_steps=options.steps, save_steps=options.save_steps, logging_steps=10,
            per_device_train_batch_size=16, learning_rate=3e-3, report_to='none', use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[asked],
    )
    earlier = last_checkpoint(options.out)
    print(f'begins from {earlier or options.base}', flush=True)
    trainer.train(resume_from_checkpoint=earlier)
    losses = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
    print(f'step {trainer.state.global_step}, loss {losses[0]:.2f} to {losses[-1]:.2f}', flush=True)
    if asked.asked:
        return
    trainer.save_model(f'{options.out}/tuned')
    with open(f'{options.out}/tuned/result.json', 'w') as out:
        json.dump({'steps': trainer.state.global_step, 'first_loss': losses[0], 'last_loss': losses[-1]}, out)


main()
