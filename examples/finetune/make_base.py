"""Makes a tiny language model, its tokenizer and a dataset, so that the example needs no download."""

import argparse
import json
import pathlib
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = {
    'who': ['a customer', 'an admin', 'a new user', 'the finance team'],
    'what': ['cannot log in', 'lost an invoice', 'sees an empty page', 'wants a refund'],
    'then': ['reset the password', 'send the invoice again', 'clear the cache', 'ask billing'],
}


def ticket(dice):
    who, what, then = (dice.choice(WORDS[kind]) for kind in ('who', 'what', 'then'))
    return f'ticket: {who} {what}. answer: {then}.'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--base', type=pathlib.Path, required=True, help='the folder of the model')
    parser.add_argument('--data', type=pathlib.Path, required=True, help='the folder of the dataset')
    options = parser.parse_args()

    dice = random.Random(7)
    options.data.mkdir(parents=True, exist_ok=True)
    for part in range(4):
        lines = [json.dumps({'text': ticket(dice)}) for _ in range(2_000)]
        (options.data / f'tickets-{part}.jsonl').write_text('\n'.join(lines) + '\n')

    tokenizer = Tokenizer(models.BPE(unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=['<unk>', '<s>', '</s>'])
    tokenizer.train_from_iterator((ticket(dice) for _ in range(2_000)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token='<unk>', bos_token='<s>', eos_token='</s>', pad_token='</s>'
    )
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )
    fast.save_pretrained(options.base)
    LlamaForCausalLM(config).save_pretrained(options.base)


main()
