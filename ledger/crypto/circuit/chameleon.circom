// SPDX-License-Identifier: GPL-3.0-or-later
// The statement that an opening of the chameleon hash by proof stands for (ledger/crypto/chameleon.py):
//
//     h = Poseidon(m, ξ) with ξ ≥ 2^128    OR    pk = Poseidon(sk, 1)
//
// What must hold outside, because a circuit sees only residues modulo r (ledger/crypto/chameleon_proof.py does it):
//   - pk, h and m are numbers below r: a second name of a residue would be a second name of a hash or a key;
//   - m is a digest without its three highest bits;
//   - the verifying key is the one that the network's genesis names.
// What is enforced here:
//   - exactly one branch counts, for the selector is 0 or 1: with any other number both equations could be escaped;
//   - ξ is read as its one decomposition below r (Num2Bits_strict refuses ξ + r) and reaches 2^128: a proof opens just what
//     `check_opening` opens, and no hash of the left branch is a public key, since its second input is never 1.
// sk needs no range: whatever number satisfies pk = Poseidon(sk, 1) is the trapdoor.
//
// pk, h and m stand in one order in three places: the signals below, the list of public signals, the verifier.
pragma circom 2.1.0;

include "bitify.circom";
include "comparators.circom";
include "poseidon.circom";

// Satisfiable only if `in`, as a number below r, is at least 2^128.
template AtLeastTwoToThe128() {
    signal input in;

    component bits = Num2Bits_strict();
    bits.in <== in;
    // At most 126, so the sum is zero as a residue only if it is zero.
    var high = 0;
    for (var i = 128; i < 254; i++) {
        high += bits.out[i];
    }
    component none = IsZero();
    none.in <== high;
    none.out === 0;
}

template ChameleonHash() {
    signal input public_key;
    signal input chameleon_hash;
    signal input message;
    signal input by_trapdoor;
    signal input opening;
    signal input trapdoor;

    by_trapdoor * (by_trapdoor - 1) === 0;

    // Enforced on both branches, as that costs nothing: who proves by the trapdoor names any ξ in the range.
    component range = AtLeastTwoToThe128();
    range.in <== opening;

    component hash = Poseidon(2);
    hash.inputs[0] <== message;
    hash.inputs[1] <== opening;
    (1 - by_trapdoor) * (hash.out - chameleon_hash) === 0;

    component key = Poseidon(2);
    key.inputs[0] <== trapdoor;
    key.inputs[1] <== 1;
    by_trapdoor * (key.out - public_key) === 0;
}

component main {public [public_key, chameleon_hash, message]} = ChameleonHash();
