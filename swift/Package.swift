// swift-tools-version: 5.9
// The Swift of the cards, to be compiled: each target is the code of one kind of card, as tests/test_swift.py writes it.

import PackageDescription

let examples = [
    "Answer",
    "Choose",
    "Classify",
    "ClassifyManyLabels",
    "ClassifyPairs",
    "ClassifyUnnamed",
    "Embed",
    "EmbedCutShort",
    "EmbedSeveralLengths",
    "Features",
    "FillMask",
    "FindReplaced",
    "NextSentence",
    "Rank",
    "Tag",
    "TagUnnamed",
    "Write",
    "WriteFromStates",
    "WriteFromText",
    "WriteIds",
]

let package = Package(
    name: "Examples",
    platforms: [.macOS("15.0")],
    dependencies: [
        .package(url: "https://github.com/huggingface/swift-transformers", exact: "1.3.3")
    ],
    targets: examples.map { name in
        .executableTarget(
            name: name,
            dependencies: [
                .product(name: "Hub", package: "swift-transformers"),
                .product(name: "Tokenizers", package: "swift-transformers"),
            ])
    }
)
