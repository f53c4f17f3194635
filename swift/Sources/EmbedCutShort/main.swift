import CoreML
import Foundation
import Hub
import Tokenizers

struct Model {
    let model: MLModel
    let tokenizer: any Tokenizer
    let length = 128
    let limit = 20  // tokens of a text that the original keeps

    /// `folder` has the package, and the tokenizer's files.
    init(folder: URL) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .cpuAndNeuralEngine
        let package = folder.appending(path: "all-MiniLM-L6-v2.float16.mlpackage")
        let compiled = try await MLModel.compileModel(at: package)
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        tokenizer = try await AutoTokenizer.from(modelFolder: folder)
    }

    func callAsFunction(_ text: String) throws -> [Float] {
        try values(predict(encode(text)), "sentence_embedding").scalars
    }

    private func encode(_ text: String) -> [Int] {
        let tokens = tokenizer.encode(text: text)
        if tokens.count <= limit { return tokens }
        return Array(tokens.prefix(limit - 1)) + tokens.suffix(1)  // the closing token
    }

    private func predict(_ tokens: [Int]) throws -> MLFeatureProvider {
        func tensor(_ row: [Int], padding: Int = 0) -> MLFeatureValue {
            let padded = row + [Int](repeating: padding, count: length - row.count)
            let scalars = padded.map { Int32($0) }
            let array = MLShapedArray(scalars: scalars, shape: [1, length])
            return MLFeatureValue(shapedArray: array)
        }
        return try model.prediction(from: MLDictionaryFeatureProvider(dictionary: [
            "input_ids": tensor(tokens, padding: 0),
            "attention_mask": tensor(tokens.map { _ in 1 }),
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
let a = try model("How do I reset my password?")
let b = try model("I cannot log in any more.")
func dot(_ x: [Float], _ y: [Float]) -> Float { zip(x, y).map(*).reduce(0, +) }
print("cosine similarity:", dot(a, b) / (dot(a, a) * dot(b, b)).squareRoot())
