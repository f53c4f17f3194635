import CoreML
import Foundation
import Hub
import Tokenizers

struct Writer {
    let encoder: MLModel
    let decoder: MLModel
    let tokenizer: any Tokenizer
    let length = 64
    let end: Set<Int> = [3]

    /// `folder` has the packages, and the tokenizer's files.
    init(folder: URL) async throws {
        func load(_ package: String) async throws -> MLModel {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = .cpuAndNeuralEngine
            configuration.functionName = "tokens_64"
            let url = folder.appending(path: package)
            let compiled = try await MLModel.compileModel(at: url)
            return try MLModel(contentsOf: compiled, configuration: configuration)
        }
        encoder = try await load(
            "all-MiniLM-L6-v2Encoder.float16.mlpackage")
        decoder = try await load(
            "all-MiniLM-L6-v2Decoder.float16.mlpackage")
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
    }

    /// The ids that are written for a text.
    func callAsFunction(_ text: String) throws -> [Int] {
        var tokens = tokenizer.encode(text: text)
        if tokens.count > length {  // keep the closing token
            tokens = Array(tokens.prefix(length - 1)) + tokens.suffix(1)
        }
        let there = tokens.map { _ in 1 }
        let read = try predict(encoder, [
            "input_ids": tensor(tokens, padding: 0),
            "attention_mask": tensor(there),
            "token_type_ids": tensor([]),
        ])
        let states = read.featureValue(for: "last_hidden_state")!
        var ids = [2]
        while ids.count < length {
            let outputs = try predict(decoder, [
                "input_ids": tensor(ids, padding: 0),
                "attention_mask": tensor(ids.map { _ in 1 }),
                "encoder_hidden_states": states,
                "encoder_attention_mask": tensor(there),
            ])
            let logits = outputs.featureValue(for: "logits")!.multiArrayValue!
            let rows = MLShapedArray<Float>(converting: logits)[0]
            let scores = rows[ids.count - 1].scalars  // what comes after the last token
            let best = scores.indices.max { scores[$0] < scores[$1] }!
            if end.contains(best) { break }
            ids.append(best)
        }
        return Array(ids.dropFirst())
    }

    private func tensor(_ values: [Int], padding: Int32 = 0) -> MLFeatureValue {
        let rest = [Int32](repeating: padding, count: length - values.count)
        let scalars = values.map { Int32($0) } + rest
        let row = MLShapedArray(scalars: scalars, shape: [1, length])
        return MLFeatureValue(shapedArray: row)
    }

    private func predict(
        _ model: MLModel, _ inputs: [String: MLFeatureValue]
    ) throws -> MLFeatureProvider {
        try model.prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
    }
}

let revision = "v1"
let folder = try await HubApi.shared.snapshot(
    from: "my-org/all-MiniLM-L6-v2-ane", revision: revision,
    matching: [
        "*.json",
        "all-MiniLM-L6-v2Encoder.float16.mlpackage/*",
        "all-MiniLM-L6-v2Decoder.float16.mlpackage/*",
    ])
let writer = try await Writer(folder: folder)
let ids = try writer("She opened the window.")
print(writer.tokenizer.decode(tokens: ids))
