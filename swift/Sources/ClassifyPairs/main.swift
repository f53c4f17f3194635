import CoreML
import Foundation
import Hub
import Tokenizers

struct Model {
    let model: MLModel
    let tokenizer: any Tokenizer
    let labels: [String]
    let length = 128

    /// `folder` has the package, and the tokenizer's files.
    init(folder: URL) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .cpuAndNeuralEngine
        let package = folder.appending(path: "all-MiniLM-L6-v2.float16.mlpackage")
        let compiled = try await MLModel.compileModel(at: package)
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
        let record = try Data(contentsOf: folder.appending(path: "conversion.json"))
        labels = try JSONDecoder().decode(Record.self, from: record).labels
    }

    /// The probability of each label.
    func callAsFunction(_ first: String, _ second: String) throws -> [Float] {
        let scores = try values(predict(encode(first, second)), "logits").scalars
        let most = scores.max()!
        let weights = scores.map { exp($0 - most) }
        let sum = weights.reduce(0, +)
        return weights.map { $0 / sum }
    }

    private func encode(
        _ first: String, _ second: String
    ) -> (tokens: [Int], types: [Int]) {
        let a = tokenizer.encode(text: first)
        // One opening token is enough.
        var b = Array(tokenizer.encode(text: second).dropFirst())
        precondition(a.count < length, "the first text is too long")
        if b.count > length - a.count {  // keep the closing token
            b = Array(b.prefix(length - a.count - 1)) + b.suffix(1)
        }
        return (a + b, a.map { _ in 0 } + b.map { _ in 1 })
    }

    private func predict(
        _ pair: (tokens: [Int], types: [Int])
    ) throws -> MLFeatureProvider {
        func tensor(_ row: [Int], padding: Int = 0) -> MLFeatureValue {
            let padded = row + [Int](repeating: padding, count: length - row.count)
            let scalars = padded.map { Int32($0) }
            let array = MLShapedArray(scalars: scalars, shape: [1, length])
            return MLFeatureValue(shapedArray: array)
        }
        return try model.prediction(from: MLDictionaryFeatureProvider(dictionary: [
            "input_ids": tensor(pair.tokens, padding: 0),
            "attention_mask": tensor(pair.tokens.map { _ in 1 }),
            "token_type_ids": tensor(pair.types),
        ]))
    }

    private func values(
        _ outputs: MLFeatureProvider, _ name: String
    ) -> MLShapedArray<Float> {
        MLShapedArray(converting: outputs.featureValue(for: name)!.multiArrayValue!)
    }

    private struct Record: Decodable { let labels: [String] }
}

let revision = "v1"
let folder = try await HubApi.shared.snapshot(
    from: "my-org/all-MiniLM-L6-v2-ane", revision: revision,
    matching: ["*.json", "all-MiniLM-L6-v2.float16.mlpackage/*"])
let model = try await Model(folder: folder)
let scores = try model(
    "What is the capital of France?", "Paris is the capital of France.")
for (label, score) in zip(model.labels, scores) { print(label, score) }
