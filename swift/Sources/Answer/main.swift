import CoreML
import Foundation
import Hub
import Tokenizers

struct Model {
    let model: MLModel
    let tokenizer: any Tokenizer
    let length = 128

    /// `folder` has the package, and the tokenizer's files.
    init(folder: URL) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .cpuAndNeuralEngine
        let package = folder.appending(path: "all-MiniLM-L6-v2.float16.mlpackage")
        let compiled = try await MLModel.compileModel(at: package)
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
    }

    func callAsFunction(_ question: String, _ passage: String) throws -> String {
        let pair = encode(question, passage)
        let outputs = try predict(pair)
        let start = values(outputs, "start_logits").scalars
        let end = values(outputs, "end_logits").scalars
        let inside = pair.types.firstIndex(of: 1)! ..< pair.tokens.count - 1
        let first = inside.max { start[$0] < start[$1] }!
        let last = (first ..< inside.upperBound).max { end[$0] < end[$1] }!
        return tokenizer.decode(tokens: Array(pair.tokens[first ... last]))
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
}

let revision = "v1"
let folder = try await HubApi.shared.snapshot(
    from: "my-org/all-MiniLM-L6-v2-ane", revision: revision,
    matching: ["*.json", "all-MiniLM-L6-v2.float16.mlpackage/*"])
let model = try await Model(folder: folder)
let passage = "Ada Lovelace was born in London in 1815."
print(try model("Where was Ada Lovelace born?", passage))
