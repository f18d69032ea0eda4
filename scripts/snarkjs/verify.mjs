// SPDX-License-Identifier: GPL-3.0-or-later
// Reads [{"key": verification_key.json, "publics": […], "proof": proof.json}, …] and writes [true, false, …]: what snarkjs says of each.
import { readFileSync } from "node:fs";
import { groth16 } from "snarkjs";

const verdicts = [];
for (const { key, publics, proof } of JSON.parse(readFileSync(0, "utf-8"))) {
    verdicts.push(await groth16.verify(key, publics, proof));
}
console.log(JSON.stringify(verdicts));
// snarkjs keeps worker threads.
process.exit(0);
